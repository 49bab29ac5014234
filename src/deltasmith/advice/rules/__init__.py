"""The rules, one family a file, in the order in which they narrow the candidates: `catalogue.rules_of`."""
