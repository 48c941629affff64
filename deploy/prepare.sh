#!/usr/bin/env bash
# Makes what docker-compose.yml mounts and git does not hold: Grafana's password and the folder of keys. Keeps what is there.
#   bash deploy/prepare.sh
set -euo pipefail
cd "$(dirname "$0")"

# The folder keeps others on this machine out; the files in it are read by the containers' own users.
mkdir -p secrets farm
chmod 0700 secrets
password=secrets/grafana_admin_password
if [[ ! -s $password ]]; then
  (umask 0022 && head -c 18 /dev/urandom | base64 | tr -d '\n' > "$password")
fi
echo "Grafana: user admin, password in deploy/$password"
