"""Who belongs to a cluster: its certificate authority, the tokens that let peers join, and their identities."""
