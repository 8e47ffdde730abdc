"""Client of the data plane: what the console's try-it form and the command line call a gateway with."""
