"""The gRPC side: `iog.rpc.server` serves predictors, `iog.client` calls them."""
