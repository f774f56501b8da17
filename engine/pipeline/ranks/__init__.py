"""A stage that several processes of one machine compute together: each holds its part of every layer."""
