"""The public names: variants with weights. Publishes the routing table."""
