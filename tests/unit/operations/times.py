"""When the tests take place, in Unix milliseconds."""

AT = 1_800_000_000_000
