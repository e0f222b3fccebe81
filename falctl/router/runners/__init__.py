"""The runners' side: a link to each, its requests and its event stream."""
