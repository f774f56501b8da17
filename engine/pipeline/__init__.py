"""One model in stages on several machines: a coordinator and its peers."""
