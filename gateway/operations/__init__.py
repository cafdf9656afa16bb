"""An operator's verbs: plain functions over the database, which the command line calls. They parse nothing and print nothing."""
