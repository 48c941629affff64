"""The student's end: clients, transports, the labelled loader, losses, methods and the reference trainer.

``from teacherfarm.student import TeacherClient`` is all that most training loops need of the network.
"""

from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.blocking import LabelFuture, TeacherClient
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.settings import Timeouts

__all__ = ["AsyncTeacherClient", "ClientStats", "LabelFuture", "LabelSpec", "SoftLabels", "TeacherClient", "Timeouts"]
