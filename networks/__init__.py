"""Networks that teachers and students are both made of: the papers' networks for 32 x 32 images.

Knows PyTorch alone: nothing of export, students or methods.
"""
