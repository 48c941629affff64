"""The student's end: clients, transports, the labelled loader, losses and the reference trainer."""
