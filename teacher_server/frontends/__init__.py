"""The server's ends of the wires. Only these modules import grpc or zmq."""
