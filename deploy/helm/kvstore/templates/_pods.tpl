{{/* Pod templates, shared by all modes. No checksum of the configuration: master and nodes reload it
     while they serve, and a new pod would lose its cache. */}}
{{- define "kvstore.masterPod" -}}
metadata:
  labels:
    {{- include "kvstore.selector" . | nindent 4 }}
    app.kubernetes.io/component: master
spec:
  automountServiceAccountToken: false
  {{- if .Values.priorityClass.create }}
  priorityClassName: {{ include "kvstore.name" . }}-{{ .Release.Namespace }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{ toJson . }}
  {{- end }}
  {{- with .Values.master.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with .Values.master.tolerations }}
  tolerations: {{ toJson . }}
  {{- end }}
  {{- if gt (int .Values.master.replicas) 1 }}
  {{- if or (eq .Values.mode "rbg") (not .Values.master.state) }}
  {{- fail "master.replicas above 1 needs master.state, and mode statefulset or daemonset" }}
  {{- end }}
  topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: DoNotSchedule
    labelSelector:
      matchLabels:
        {{- include "kvstore.selector" . | nindent 8 }}
        app.kubernetes.io/component: master
  {{- end }}
  terminationGracePeriodSeconds: 30
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
  - name: master
    image: {{ include "kvstore.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command:
    - kvstore-master
    - --config=/etc/kvstore/master.json
    {{- if gt (int .Values.master.replicas) 1 }}
    - --advertise-host=$(POD_NAME).{{ include "kvstore.podsHost" . }}
    {{- end }}
    env:
    {{- if gt (int .Values.master.replicas) 1 }}
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - {name: KVSTORE_MASTER, value: {{ include "kvstore.masters" . | quote }}}
    {{- end }}
    # For kvstore, the operator's tool: kubectl exec … -- kvstore nodes
    - {name: KVSTORE_TOKEN_FILE, value: /etc/kvstore-operator/token}
    ports:
    - {name: block, containerPort: 50051}
    - {name: grpc, containerPort: 50052}
    - {name: http, containerPort: 9080}
    {{- /* A standby opens its HTTP port alone, and has to count as ready, or no upgrade would go on. */}}
    {{- $probe := ternary "grpc: {port: 50052}" "httpGet: {path: /healthz, port: http}" (eq (int .Values.master.replicas) 1) }}
    startupProbe:
      {{ $probe }}
      periodSeconds: 1
      failureThreshold: 60
    readinessProbe:
      {{ $probe }}
      periodSeconds: 2
      timeoutSeconds: 2
    livenessProbe:
      {{ $probe }}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    lifecycle:
      preStop:
        sleep: {seconds: 1}
    resources:
      requests: {cpu: {{ .Values.master.cpu }}, memory: {{ .Values.master.memory }}}
      limits: {cpu: {{ .Values.master.cpu }}, memory: {{ .Values.master.memory }}}
    securityContext:
      {{- include "kvstore.containerSecurity" . | nindent 6 }}
    volumeMounts:
    - {name: config, mountPath: /etc/kvstore, readOnly: true}
    - {name: tokens, mountPath: /etc/kvstore-tokens, readOnly: true}
    - {name: operator, mountPath: /etc/kvstore-operator, readOnly: true}
    {{- if not .Values.master.state }}
    - {name: data, mountPath: /var/lib/kvstore}
    {{- end }}
    {{- if .Values.master.etcdSecretName }}
    - {name: etcd, mountPath: /etc/kvstore-etcd, readOnly: true}
    {{- end }}
  volumes:
  - name: config
    configMap: {name: {{ include "kvstore.name" . }}-master}
  - name: tokens
    secret: {secretName: {{ .Values.tokens.secretName }}, defaultMode: 0400}
  - name: operator
    secret: {secretName: {{ .Values.tokens.operatorSecretName }}, defaultMode: 0400, optional: true}
  {{- with .Values.master.etcdSecretName }}
  - name: etcd
    secret: {secretName: {{ . }}, defaultMode: 0400}
  {{- end }}
  {{- if and (eq .Values.mode "rbg") (not .Values.master.state) }}
  - name: data
    persistentVolumeClaim: {claimName: {{ include "kvstore.name" . }}-master}
  {{- end }}
{{- end -}}

{{- define "kvstore.storePod" -}}
metadata:
  labels:
    {{- include "kvstore.selector" . | nindent 4 }}
    app.kubernetes.io/component: store
spec:
  automountServiceAccountToken: false
  {{- if .Values.priorityClass.create }}
  priorityClassName: {{ include "kvstore.name" . }}-{{ .Release.Namespace }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{ toJson . }}
  {{- end }}
  {{- with .Values.store.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with .Values.store.tolerations }}
  tolerations: {{ toJson . }}
  {{- end }}
  {{- with .Values.store.affinity }}
  affinity: {{ toJson . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.store.terminationGracePeriodSeconds }}
  {{- if ne .Values.mode "daemonset" }}
  topologySpreadConstraints:
  {{- range $key, $when := dict "kubernetes.io/hostname" "DoNotSchedule" "topology.kubernetes.io/zone" "ScheduleAnyway" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $when }}
    labelSelector:
      matchLabels:
        {{- include "kvstore.selector" $ | nindent 8 }}
        app.kubernetes.io/component: store
  {{- end }}
  {{- end }}
  securityContext:
    {{- include "kvstore.podSecurity" . | nindent 4 }}
  {{- if and .Values.shm.enabled .Values.shm.createFolder }}
  initContainers:
  # Not the store's image: that of an init container never changes in place, so it has to stay.
  - name: socket-folder
    image: {{ .Values.shm.folderImage }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [install, -d, -g, {{ .Values.shm.group | quote }}, -m, "2775", {{ .Values.shm.hostPath }}]
    resources:
      requests: {cpu: 1, memory: 64Mi}
      limits: {cpu: 1, memory: 64Mi}
    securityContext:
      runAsNonRoot: false
      runAsUser: 0
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN, FOWNER, FSETID]}
    volumeMounts:
    - {name: sockets, mountPath: {{ .Values.shm.hostPath }}}
  {{- end }}
  containers:
  - name: store
    image: {{ include "kvstore.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command:
    - kvstore-node
    - --config=/etc/kvstore/node.json
    - --advertise-host=$(POD_IP)
    - --label=host=$(NODE_NAME)
    {{- if eq .Values.mode "daemonset" }}
    - --node-id=$(NODE_NAME)
    {{- end }}
    env:
    - name: POD_IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
    - name: NODE_NAME
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    ports:
    - {name: block, containerPort: 50061}
    - {name: http, containerPort: 9081}
    startupProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 2
      failureThreshold: 300
    readinessProbe:
      httpGet: {path: /readyz, port: http}
      periodSeconds: 2
      timeoutSeconds: 2
    livenessProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    lifecycle:
      preStop:
        sleep: {seconds: 1}
    resources:
      requests: {cpu: {{ .Values.store.cpu }}, memory: {{ include "kvstore.limitMib" . }}Mi}
      limits: {cpu: {{ .Values.store.cpu }}, memory: {{ include "kvstore.limitMib" . }}Mi}
    securityContext:
      {{- include "kvstore.containerSecurity" . | nindent 6 }}
    volumeMounts:
    - {name: config, mountPath: /etc/kvstore, readOnly: true}
    - {name: tokens, mountPath: /etc/kvstore-tokens, readOnly: true}
    - {name: segments, mountPath: /segments}
    {{- if .Values.nvme.enabled }}
    - {name: nvme, mountPath: /nvme}
    {{- end }}
    {{- if .Values.shm.enabled }}
    - {name: sockets, mountPath: {{ .Values.shm.hostPath }}}
    {{- end }}
  volumes:
  - name: config
    configMap: {name: {{ include "kvstore.name" . }}-store}
  - name: tokens
    secret: {secretName: {{ .Values.tokens.secretName }}, defaultMode: 0400}
  - name: segments
    emptyDir: {medium: Memory, sizeLimit: {{ include "kvstore.roomMib" . }}Mi}
  {{- if .Values.nvme.enabled }}
  - name: nvme
    hostPath: {path: {{ .Values.nvme.hostPath }}, type: Directory}
  {{- end }}
  {{- if .Values.shm.enabled }}
  - name: sockets
    hostPath: {path: {{ .Values.shm.hostPath }}, type: {{ ternary "DirectoryOrCreate" "Directory" .Values.shm.createFolder }}}
  {{- end }}
{{- end -}}
