"""The command line. Talks to the control API; runs the platform's parts as processes and never imports them."""
