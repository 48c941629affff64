"""``teacherfarm doctor``: looks at an installation, a model directory, a farm and the link to it, and says in plain
words what is wrong and what to do. Knows both ends; neither knows it.
"""
