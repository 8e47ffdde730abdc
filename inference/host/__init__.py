"""The supervisor: parent of this host's replicas, and its client. Light: never imports a tensor library or an engine room."""
