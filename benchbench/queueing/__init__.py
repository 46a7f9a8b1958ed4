"""Whether requests waited for places in the server's batch."""
