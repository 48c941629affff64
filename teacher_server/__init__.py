"""The farm's side: front-ends, gateway, lanes and backends. Never imports torch or anything of the student's."""
