"""End-to-end tests and the clusters that they run on. Nothing in the product imports this."""
