"""What crosses processes: messages, frames, routes, status, and the public shapes. Imports no tensor library."""
