"""What goes over an edge between stages, as bytes: frames and the codecs of activations."""
