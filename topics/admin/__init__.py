"""Administration: topics, rights and replication, made and checked on a cluster."""
