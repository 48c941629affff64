#!/usr/bin/env bash
# Makes the secret that docker-compose.yml mounts and git does not hold, Grafana's password. Keeps one that is there.
#   bash deploy/prepare.sh
set -euo pipefail
cd "$(dirname "$0")"

# The folder keeps others on this machine out; the file in it is read by the container's own user.
mkdir -p secrets
chmod 0700 secrets
password=secrets/grafana_admin_password
if [[ ! -s $password ]]; then
  (umask 0022 && head -c 18 /dev/urandom | base64 | tr -d '\n' > "$password")
fi
echo "Grafana: user admin, password in deploy/$password"
