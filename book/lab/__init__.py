"""The laboratory: a multi-task benchmark with a known answer, real tasks, and the experiments on both.

methods.py      Which adapters are compared?
runs.py         How are many runs made, kept and searched?
records.py      What was measured, and where?

english/        What do adapters learn where the answer is known? Controlled English
real/           And on a pretrained model and real tasks?
cost/           What do they cost in time and memory?
pictures/       How does it look?
publishing/     How do notebooks become a book, a website and Colab's?
"""
