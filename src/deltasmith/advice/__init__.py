"""Which method and settings suit these models: surveys → facts → opinions of rules → one recommendation or none.

`measuring` reads the models once and counts; `facts` holds what the rules may know; `rules/` holds the rules, one file
for each family; `deciding` lets them narrow the candidates; `run.advise` is the whole. Nothing here runs a network.
"""
