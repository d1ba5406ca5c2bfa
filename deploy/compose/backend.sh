#!/bin/sh
# A web server that says its name; its way back to the clients leads over the balancer.
set -eu
ip route replace default via "$GATEWAY4"
ip -6 route replace default via "$GATEWAY6"
cat >/etc/nginx/nginx.conf <<END
events {}
http {
    access_log off;
    server {
        listen 80;
        listen [::]:80;
        default_type text/plain;
        location / { return 200 "$NAME\n"; }
    }
}
END
exec nginx -g 'daemon off;'
