AwsNeuronModuleMarkerStartForward = "AwsNeuronModuleMarker-Start-Forward"
AwsNeuronModuleMarkerEndForward = "AwsNeuronModuleMarker-End-Forward"
