"""The model contract and the catalog (format -> loader). A framework is imported only inside its own sub-room."""
