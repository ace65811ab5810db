#!/usr/bin/env bash
# How many operations of a queue in a table PostgreSQL makes a second on this machine: a server of its
# own in a folder that is deleted, with its default settings, and pgbench.
#
#   tools/scaling/queue_operations.sh [SECONDS]       # 10 for each line; not as root
#
# A claim here takes the first row by a number that is stored; nothing of the program runs.
set -euo pipefail
seconds=${1:-10}
programs=$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -n 1)
export PATH=$programs:$PATH
folder=$(mktemp -d)
export PGHOST=$folder PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
trap 'pg_ctl -D "$folder/data" -m immediate stop > "$folder/log" 2>&1 || true; rm -rf "$folder"' EXIT
cd "$folder"
initdb -D data -A trust -U postgres > log
pg_ctl -D data -w -o "-k $folder -c listen_addresses=''" -l log start > started

psql -q << 'SQL'
create table jobs (
  id bigserial primary key, model text not null, client int not null, state text not null default 'waiting',
  place float8 not null, attempt int not null default 0, worker text, lease_until timestamptz, step int,
  fields jsonb, arrived timestamptz default now());
create index on jobs (model, place, id) where state = 'waiting';
create index on jobs (lease_until) where state = 'running';
insert into jobs (model, client, state, place, fields)
  select 'm', i % 256, case when i > 500 then 'done' else 'waiting' end, i, jsonb_build_object('prompt', repeat('x', 500))
  from generate_series(1, 50500) i;
vacuum analyze jobs;
SQL
cat > job.sql << 'SQL'
\set client random(1, 256)
\set place random(1, 1000000)
insert into jobs (model, client, place, fields)
  values ('m', :client, :place, jsonb_build_object('prompt', repeat('x', 500)));
update jobs set state = 'running', attempt = attempt + 1, worker = 'w', lease_until = now() + interval '15 s'
  where id = (select id from jobs where state = 'waiting' and model = 'm' order by place, id limit 1
    for update skip locked) returning id, attempt \gset
update jobs set lease_until = now() + interval '15 s', step = 1
  where id = :id and attempt = :attempt and state = 'running';
update jobs set state = 'done', lease_until = null where id = :id and attempt = :attempt and state = 'running';
SQL
echo "update jobs set lease_until = now() + interval '15 s', step = 2 where id = 1 + :client_id;" > renewal.sql
echo "select pg_notify('gateway' || :client_id % 4, '{\"job\": \"01234567\", \"step\": 12}');" > notification.sql

postgres --version
measure() { # WHAT CLIENTS
  local result
  result=$(pgbench -n -c "$2" -j 2 -T "$seconds" -f "$1.sql" 2>&1 | sed -n 's/^tps = \([0-9]*\).*/\1/p')
  echo "$1, $2 connections: $result a second"
}
measure job 8
measure job 32
measure renewal 32
measure notification 32
