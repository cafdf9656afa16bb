"""The schema as it grew: numbered scripts with `up(migrator, db)`, applied by `gateway migrate`. Each holds its own frozen models."""
