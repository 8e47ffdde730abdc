"""One module per page or group of pages. A view reads, or calls one action, and never writes rows itself."""
