"""Offline trainer of Mainstay's bundles, run by a data scientist or in CI; the server never imports it."""
