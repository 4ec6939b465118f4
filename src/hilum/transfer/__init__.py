"""What goes to another archive or comes from one, whatever the protocol: what to send, what was taken, what
is missing, where it is put."""
