"""Where prepared data lies: the local cache and object stores."""
