"""What people watch: the page of a cluster, and what Prometheus and Grafana are provisioned with."""
