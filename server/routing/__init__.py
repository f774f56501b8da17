"""Which of several engines of one model a request goes to: here, or over the machines of a cluster."""
