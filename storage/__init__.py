"""What the API and the workers share: settings, tables, the job lifecycle, artifacts and the queue."""
