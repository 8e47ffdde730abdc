"""The host agent: converges this host's replicas and validations to what the rows want. No models of its own."""
