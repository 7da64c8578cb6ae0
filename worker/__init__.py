"""The worker: hears doorbells, claims jobs, and trains each in a supervised process of its own.

main        the Celery worker's parent: schema, device, queues; keeper beside it
slot        the Celery child: claims jobs, supervises one at a time, keeps the warm spare
training    the training process: one attempt of one job
"""
