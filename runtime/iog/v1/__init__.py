"""The wire contract: generated from protos/iog/v1 by `make protos`, not edited."""
