"""The command line: a grammar, and one small module for each group of verbs."""
