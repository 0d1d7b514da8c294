{{- define "kvstore.name" -}}
{{- if contains "kvstore" .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-kvstore" .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "kvstore.selector" -}}
app.kubernetes.io/name: kvstore
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kvstore.labels" -}}
{{ include "kvstore.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "kvstore.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "kvstore.host" -}}
{{ include "kvstore.name" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* Block ports of all masters: each standby has a name of its own, as only the active one listens. */}}
{{- define "kvstore.masters" -}}
{{- if gt (int .Values.master.replicas) 1 -}}
{{- $masters := list -}}
{{- range $number := until (int .Values.master.replicas) -}}
{{- $masters = append $masters (printf "%s-master-%d.%s:50051" (include "kvstore.name" $) $number (include "kvstore.podsHost" $)) -}}
{{- end -}}
{{ join "," $masters }}
{{- else -}}
{{ include "kvstore.host" . }}:50051
{{- end -}}
{{- end -}}

{{- define "kvstore.podsHost" -}}
{{ include "kvstore.name" . }}-pods.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* Mebibytes of a quantity in Mi or Gi; the schema admits no others. */}}
{{- define "kvstore.mib" -}}
{{- if hasSuffix "Gi" . -}}
{{ mul 1024 (trimSuffix "Gi" . | int64) }}
{{- else -}}
{{ trimSuffix "Mi" . | int64 }}
{{- end -}}
{{- end -}}

{{/* What lies on the store's tmpfs: the segment, two indexes (a restart builds a new one; a sixteenth
     of the segment each, 6 MiB at least), and 32 MiB of clients' slots. */}}
{{- define "kvstore.roomMib" -}}
{{- $segment := include "kvstore.mib" .Values.store.segmentSize | int64 -}}
{{- $index := max 6 (div (add $segment 15) 16) -}}
{{ add $segment $index $index 32 }}
{{- end -}}

{{/* And what the process needs beside it: its own memory, and that of the NVMe tier. */}}
{{- define "kvstore.limitMib" -}}
{{- $process := include "kvstore.mib" .Values.store.processMemory | int64 -}}
{{ add (include "kvstore.roomMib" . | int64) $process (ternary 512 0 .Values.nvme.enabled) }}
{{- end -}}

{{- define "kvstore.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- if and .Values.shm.enabled (ne (int .Values.shm.group) 10001) }}
supplementalGroups: [{{ .Values.shm.group }}]
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "kvstore.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "kvstore.masterConfig" -}}
{{- $config := dict "host" "::" -}}
{{- $_ := set $config "auth_token_file" "/etc/kvstore-tokens/tokens" -}}
{{- if eq (int .Values.master.replicas) 1 -}}
{{- $_ := set $config "advertise_host" (include "kvstore.host" .) -}}
{{- end -}}
{{- if .Values.master.state -}}
{{- $_ := set $config "state" .Values.master.state -}}
{{- else -}}
{{- $_ := set $config "data_dir" "/var/lib/kvstore" -}}
{{- end -}}
{{ mergeOverwrite $config .Values.master.config | toPrettyJson }}
{{- end -}}

{{- define "kvstore.nodeConfig" -}}
{{- $config := dict "host" "::" "port" 50061 "http_port" 9081 -}}
{{- $_ := set $config "master_address" (include "kvstore.masters" . | splitList ",") -}}
{{- $_ := set $config "auth_token_file" "/etc/kvstore-tokens/tokens" -}}
{{- $_ := set $config "segment_dir" "/segments" -}}
{{- $_ := set $config "segment_size" (printf "%smb" (include "kvstore.mib" .Values.store.segmentSize)) -}}
{{- if .Values.nvme.enabled -}}
{{- $_ := set $config "nvme_dir" "/nvme/kvstore" -}}
{{- $_ := set $config "nvme_size" (printf "%smb" (include "kvstore.mib" .Values.nvme.size)) -}}
{{- $_ := set $config "snapshot_interval_ms" 60000 -}}
{{- $_ := set $config "shutdown_grace_ms" 30000 -}}
{{- end -}}
{{- if .Values.shm.enabled -}}
{{- $_ := set $config "socket_dir" .Values.shm.hostPath -}}
{{- $_ := set $config "socket_mode" "0660" -}}
{{- end -}}
{{ mergeOverwrite $config .Values.store.config | toPrettyJson }}
{{- end -}}

{{/* Options that every engine takes. */}}
{{- define "kvstore.clientOptions" -}}
{{- $options := dict "master" (include "kvstore.masters" .) -}}
{{- with .Values.connection.tokenFile -}}
{{- $_ := set $options "token_file" . -}}
{{- end -}}
{{- if not .Values.shm.enabled -}}
{{- $_ := set $options "transport" "tcp" -}}
{{- end -}}
{{ $options | toJson }}
{{- end -}}
