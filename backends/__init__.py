"""The built-in backends; each stands exactly where a stranger's would."""
