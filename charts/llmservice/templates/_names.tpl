{{/* Name of everything in this release; short enough for suffixes and pod hashes. */}}
{{- define "llmservice.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "llmservice.serviceAccountName" -}}
{{- default (include "llmservice.fullname" .) .Values.serviceAccount.name -}}
{{- end }}

{{/* Selectors cannot change, so nothing that an upgrade may change belongs here. */}}
{{- define "llmservice.selectorLabels" -}}
app.kubernetes.io/name: llmservice-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llmservice.labels" -}}
{{ include "llmservice.selectorLabels" . }}
app.kubernetes.io/component: operator
{{ include "llmservice.releaseLabels" . }}
{{- end }}

{{- define "llmservice.releaseLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "llmservice.metricsServer.name" -}}
{{- include "llmservice.fullname" . -}}-metrics-server
{{- end }}

{{- define "llmservice.metricsServer.selectorLabels" -}}
app.kubernetes.io/name: llmservice-metrics-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llmservice.metricsServer.labels" -}}
{{ include "llmservice.metricsServer.selectorLabels" . }}
app.kubernetes.io/component: metrics-server
{{ include "llmservice.releaseLabels" . }}
{{- end }}

{{/* Name of an image, of which the values say where it is; takes `image` and `version`. */}}
{{- define "llmservice.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .version .image.tag }}
{{- end -}}
{{- end }}
