#!/usr/bin/env bash
# Certificates for a farm that has no authority of its own. Needs openssl; writes into deploy/secrets, keeps what is there.
#   bash deploy/certificates.sh server 10.0.0.11 farm.example.org   # whatever students call the farm: names, addresses
#   bash deploy/certificates.sh student alice                       # for mutual TLS: one a student
set -euo pipefail
cd "$(dirname "$0")"
usage="usage: certificates.sh server NAME_OR_ADDRESS... | certificates.sh student NAME"
kind=${1:?$usage} name=${2:?$usage}
shift

mkdir -p secrets
chmod 0700 secrets # keeps others on this machine out; the files in it are read by the containers' own users
cd secrets
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

authority() { # FILE WHOSE: one that signs, made at the first call
  [[ -s $1.key ]] || openssl req -x509 "${key[@]}" -days 3650 -subj "/CN=$2" -keyout "$1.key" -out "$1.crt" 2>/dev/null
}

signed() { # FILE NAME AUTHORITY EXTENSIONS: a key and its certificate
  if [[ -s $1.crt ]]; then
    echo "deploy/secrets/$1.crt is there already: remove it for another"
    exit 1
  fi
  openssl req "${key[@]}" -subj "/CN=$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -CAcreateserial -days 825 -extfile <(echo "$4") \
    -out "$1.crt" 2>/dev/null
  rm "$1.csr"
  chmod 0644 "$1.key"
}

case $kind in
  server)
    names=()
    for place in "$@"; do
      if [[ $place =~ ^[0-9.]+$ || $place == *:* ]]; then names+=("IP:$place"); else names+=("DNS:$place"); fi
    done
    authority ca "teacherfarm farm"
    signed server "$name" ca "$(printf 'extendedKeyUsage=serverAuth\nsubjectAltName=%s' "$(IFS=,; echo "${names[*]}")")"
    echo "deploy/secrets/server.crt and server.key are the gateway's; give students deploy/secrets/ca.crt"
    ;;
  student)
    authority students-ca "teacherfarm students"
    mkdir -p students
    signed "students/$name" "$name" students-ca "extendedKeyUsage=clientAuth"
    echo "give $name deploy/secrets/students/$name.crt and $name.key"
    ;;
  *)
    echo "$usage" >&2
    exit 2
    ;;
esac
