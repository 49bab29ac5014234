"""The recipe language: strict YAML with places, presets, overrides, checks, explanations, a JSON schema."""
