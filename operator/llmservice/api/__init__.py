"""The contract: the resource, its rules, its names and its CRD. Imports pydantic only."""
