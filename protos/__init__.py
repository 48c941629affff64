"""What both ends of the wire must agree on: messages, crops, label specs, soft labels, teacher cards and faults.

Needs numpy and protobuf only, does no input or output, and imports nothing else of teacherfarm.
"""
