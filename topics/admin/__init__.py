"""Administration: create and check topics, rights and replication on a cluster."""
