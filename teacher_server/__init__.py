"""The server: front-ends, the gateway, the farm and its backends. Imports nothing here; torch nowhere."""
