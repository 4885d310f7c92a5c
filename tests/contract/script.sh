set -e
export NET_OPERATOR=alice
net identity generate alice
net node start --name a --detach
net node start --name b --detach
net node start --name c --detach
net daemon apply daemons.toml
net admin drain --node b --drain-for 30s --wait --yes --json | jq -e '.outcome=="accepted"'
net daemon ls --json | jq -e 'map(select(.node_name=="b"))==[]'
net audit recent --via c --json | jq -e '.[0].event_kind=="drain"'
