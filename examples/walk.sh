#!/usr/bin/env bash
# The HTTP API with curl: lists avatars and voices, opens a session, reads the capacity, closes the session.
#
#     examples/walk.sh [http://localhost:8080]
set -euo pipefail
server=${1:-http://localhost:8080}
field() { python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }

avatar=$(curl -sf "$server/v1/avatars" | field "['avatars'][0]['name']")
echo "avatar $avatar; voices: $(curl -sf "$server/v1/voices" | field "['voices']")"

session=$(curl -sf "$server/v1/sessions" -d "{\"avatar\": \"$avatar\"}")
id=$(field "['id']" <<<"$session") token=$(field "['token']" <<<"$session")
echo "watch and speak at $server/?session=$id&token=$token"
curl -sf "$server/capacity" && echo

# Errors are problem documents with true status codes.
curl -s "$server/v1/sessions" -d '{"avatar": "nobody"}' && echo

curl -sf -X DELETE -H "Authorization: Bearer $token" "$server/v1/sessions/$id"
curl -s -o /dev/null -w "closed; asking again: %{http_code}\n" -X DELETE -H "Authorization: Bearer $token" \
    "$server/v1/sessions/$id"
