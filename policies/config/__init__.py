"""Configuration: fleet and policy, from YAML to validated models and compiled options."""
